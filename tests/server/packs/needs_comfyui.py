import folder_paths  # noqa: F401

NODE_CLASS_MAPPINGS = {}
