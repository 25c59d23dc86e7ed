"""The referee: published protocols that any library can follow, and a judgement of the lists that come of them."""
