"""The window for people: a web page over the four services, with its own accounts and nothing of theirs."""
