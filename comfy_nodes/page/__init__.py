"""What ComfyUI's HTTP server answers for zbus; whom this ComfyUI sees, and how it is seen."""
