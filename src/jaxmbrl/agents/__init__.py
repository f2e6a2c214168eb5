"""Policy learners: SAC. Each is an `Agent` whose critic target and actor loss can be replaced."""
