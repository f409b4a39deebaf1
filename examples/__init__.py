"""Games of EGG's zoo with messages of one symbol: EGG's estimator in before.py, the exact sum in after.py."""
