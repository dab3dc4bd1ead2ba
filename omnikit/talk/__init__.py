"""A conversation in the terminal: the command `omnikit talk`."""
