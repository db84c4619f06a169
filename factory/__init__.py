"""The factory: matches pilots in a batch system to the manager's demand."""
