"""The page of `swiftmask studio`: the full model beside the accelerated one, on the server's own queue.

`session` knows what a click asks for and what it costs, `live` follows two decodes, `markup` shows them;
none of them knows gradio. `page` is the only module that does.
"""
