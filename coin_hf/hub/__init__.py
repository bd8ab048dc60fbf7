"""The Hub or a folder: pin and fetch repositories, and their layout."""
