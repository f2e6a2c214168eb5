"""Methods with a latent world model: a model that predicts features of observations which it learns itself."""
