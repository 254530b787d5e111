"""Version 1 of the synthesis protocol. Fields are only ever added."""
