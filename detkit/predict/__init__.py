"""From sources of pictures to files of results."""
