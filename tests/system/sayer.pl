# A stub CLI that says the first line of its prompt again and again: `sayer.pl WORDS PAUSE_MS`, as "line-1 line-2 ".
use Time::HiRes qw(sleep);
$| = 1;
my $said = <STDIN>;
chomp $said;
1 while <STDIN>;
print qq({"type":"init"}\n);
for (1 .. $ARGV[0]) { print qq({"type":"text","text":"$said-$_ "}\n); sleep $ARGV[1] / 1000; }
print qq({"type":"result","input_tokens":1,"output_tokens":1}\n);
