"""Joint training of many tasks into one shared-basis pack."""
