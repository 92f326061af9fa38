"""The generated data set `sample:shapes`."""
