"""Tasks with dynamics in closed form: pendulum, cart-pole, mountain car, planar reacher."""
