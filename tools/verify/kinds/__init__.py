"""One module a kind of golden file; the module's name is the kind."""
