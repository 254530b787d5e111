"""``make demo``: the whole suite once, from recordings to a served voice."""
