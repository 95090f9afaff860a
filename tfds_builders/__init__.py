"""One folder per dataset, as `tfds new` lays it out, and the shared base of all of them in
video_builder.py."""
