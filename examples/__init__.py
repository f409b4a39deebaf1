"""Games of EGG's zoo: EGG's estimator in before.py, the exact sum in after.py."""
