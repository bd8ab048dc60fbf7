"""Re-code a coded repository without data: other betas, lambda or experts."""
