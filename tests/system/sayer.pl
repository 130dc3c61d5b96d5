# A stub CLI that says the first line of its prompt again and again: `sayer.pl WORDS PAUSE_MS [FILE]`, as "line-1 line-2 ".
# Its last word waits for the file.
use Time::HiRes qw(sleep);
$| = 1;
my $said = <STDIN>;
chomp $said;
1 while <STDIN>;
print qq({"type":"init"}\n);
for (1 .. $ARGV[0]) {
  if ($_ == $ARGV[0] && $ARGV[2]) { sleep 0.05 until -e $ARGV[2] }
  print qq({"type":"text","text":"$said-$_ "}\n); sleep $ARGV[1] / 1000;
}
print qq({"type":"result","input_tokens":1,"output_tokens":1}\n);
