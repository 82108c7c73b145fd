"""An open replay: what it consists of, how it is closed, saved and looked at."""
