"""Other projects' voices, turned into models of ours."""
