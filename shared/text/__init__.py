"""The text front end: from written text to token ids."""
