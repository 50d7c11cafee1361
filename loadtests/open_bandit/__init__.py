"""The Open Bandit logs of a fashion shop as data of another shape than films: impressions with places, no user ids."""
