"""Reports: results -> something to look at. Add one: a file here."""
