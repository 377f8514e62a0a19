"""The networks, as functions of their parameters, and the methods that segment with them."""
