# A stub CLI that says a word every 50 ms: `ticker.pl WORDS`; the word is the time at which it was said.
use Time::HiRes qw(time sleep);
$| = 1;
my @prompt = <STDIN>;
print qq({"type":"init"}\n);
for (1 .. $ARGV[0]) { sleep 0.05; printf qq({"type":"text","text":"%.6f "}\n), time; }
print qq({"type":"result","input_tokens":1,"output_tokens":1}\n);
