"""The demo: two experts on real digits, coded and decoded."""
