"""The planner: which layouts fit, and how long a run takes, before anything is started."""
