"""Where concrete classes meet: the command line, the fit loop, recipes, runs and the viewer."""
