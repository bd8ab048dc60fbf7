"""Read and write coded repositories, on disk and on the Hub."""
