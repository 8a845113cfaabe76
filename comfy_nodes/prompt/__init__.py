"""Prompts and what is read from them or cut out of them: pure, it knows no ComfyUI."""
