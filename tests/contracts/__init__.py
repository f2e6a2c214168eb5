"""The promises that hold for every method."""
