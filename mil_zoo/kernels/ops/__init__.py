"""The ops: each a folder with its public function, a readable reference, and its fast backends."""
