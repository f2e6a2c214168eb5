"""Gymnasium's and PETS's MuJoCo tasks on MJX."""
