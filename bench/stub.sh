#!/bin/sh
# The stub CLI: reads its prompt, says one word, ends. As cheap as a process can be.
read -r line
echo '{"type":"init"}'
echo '{"type":"text","text":"hi"}'
echo '{"type":"result","input_tokens":1,"output_tokens":1}'
