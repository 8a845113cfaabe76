"""ComfyUI_NetDist's nodes."""
