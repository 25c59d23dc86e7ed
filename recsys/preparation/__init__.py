"""From raw tables to the prepared dataset; the only package of the data that imports Ray."""
