"""A page to try a coded ensemble on, here or as a Space (Gradio, extra `app`)."""
