"""The two-product form in plain torch: anywhere torch runs."""
