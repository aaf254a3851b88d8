"""Trainers of other libraries, each imported when its module is."""
