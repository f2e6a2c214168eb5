"""Planning by shooting through a learned model: PETS."""
