"""What everything above rests on: checks of options, spaces as fields, links of episodes, debug
mode."""
