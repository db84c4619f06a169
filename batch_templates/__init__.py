"""Templates of the batch scripts and the pilot's launcher."""
