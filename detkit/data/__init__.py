"""Pictures and what is true of them: data sets, reading, checking."""
