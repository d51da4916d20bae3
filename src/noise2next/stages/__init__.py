"""One plain function a step: read the workspace, call pure functions, write the workspace, return a report."""
