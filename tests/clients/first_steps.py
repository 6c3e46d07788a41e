"""What the README prints for Python: a user's script, whose types are checked with those of the tests."""

import sluice

pipe = sluice.load("flux1-dev-fp8", vram="8G")  # a file, or a name in ./models; sluice.load() takes the small model
print(pipe.plan(size=(1024, 1024)))  # memory and seconds a step, before anything is computed
images = pipe("a red fox", seed=7, steps=20)  # PIL images, with a progress bar; loras=[("style.safetensors", 0.8)]
sluice.save(images[0], "fox.png")  # with its workflow: for the editor, for `sluice run`, and for this:
flow = sluice.workflow("fox.png", vram="8G")
more = flow(prompt="a grey wolf", seed=8, steps=30)
