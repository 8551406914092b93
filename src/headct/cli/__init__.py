"""The command line: one verb per stage, in the order of the data flow."""
