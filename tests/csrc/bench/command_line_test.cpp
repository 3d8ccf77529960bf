#include "bench/command_line.h"

#include "check.h"

using namespace refiners::bench;

namespace {

const std::vector<Option> kOptions = {
    {"--model", Kind::words, "sd15,sdxl", "models to run", {"sd15", "sdxl"}},
    {"--device", Kind::word, "cpu", "where to run", {"cpu", "cuda"}},
    {"--rank", Kind::positive_integers, "16,64", "ranks"},
    {"--min-time", Kind::positive_number, "0.5", "seconds"},
    {"--json", Kind::word, "", "file to write"},
};

CommandLine parse(const std::vector<std::string>& arguments) { return {kOptions, arguments}; }

using Words = std::vector<std::string>;

}  // namespace

TEST(options_have_defaults) {
  const CommandLine line = parse({});
  CHECK(line.words("--model") == (Words{"sd15", "sdxl"}));
  CHECK(line.integers("--rank") == (std::vector<std::int64_t>{16, 64}));
  CHECK_EQ(line.number("--min-time"), 0.5);
  CHECK_EQ(line.word("--json"), "");
}

TEST(both_spellings_are_read) {
  const CommandLine line = parse({"--rank", "8", "--model=sdxl", "--json=a=b.json", "--min-time", "2e-2"});
  CHECK(line.integers("--rank") == (std::vector<std::int64_t>{8}));
  CHECK(line.words("--model") == (Words{"sdxl"}));
  CHECK_EQ(line.word("--json"), "a=b.json");
  CHECK_EQ(line.number("--min-time"), 0.02);
}

TEST(the_last_value_counts) { CHECK_EQ(parse({"--device", "cuda", "--device", "cpu"}).word("--device"), "cpu"); }

TEST(a_bad_option_lists_the_valid_ones) {
  CHECK_EQ(MESSAGE_OF(UsageError, parse({"--ranks", "8"})),
           "unknown option '--ranks'; expected --model, --device, --rank, --min-time, --json or --help");
}

TEST(a_bad_value_lists_the_valid_ones) {
  CHECK_EQ(MESSAGE_OF(UsageError, parse({"--model", "sd15,sd3"})), "--model must be any of sd15, sdxl; got 'sd15,sd3'");
  CHECK_EQ(MESSAGE_OF(UsageError, parse({"--device", "tpu"})), "--device must be one of cpu, cuda; got 'tpu'");
  CHECK_EQ(MESSAGE_OF(UsageError, parse({"--rank", "16,0"})),
           "--rank must be whole numbers above 0, separated by commas; got '16,0'");
  CHECK_EQ(MESSAGE_OF(UsageError, parse({"--rank="})),
           "--rank must be whole numbers above 0, separated by commas; got ''");
  CHECK_EQ(MESSAGE_OF(UsageError, parse({"--min-time", "1s"})), "--min-time must be a number above 0; got '1s'");
}

TEST(a_missing_value_says_what_is_needed) {
  CHECK_EQ(MESSAGE_OF(UsageError, parse({"--json"})), "--json needs a value: file to write");
  CHECK_EQ(MESSAGE_OF(UsageError, parse({"--device"})), "--device needs a value: one of cpu, cuda");
}

TEST(an_undeclared_option_is_a_mistake_of_the_program) {
  CHECK_EQ(MESSAGE_OF(std::logic_error, parse({}).word("--nothing")), "no such option: --nothing");
}

TEST(the_description_names_every_option_its_choices_and_its_default) {
  const std::string text = describe(kOptions);
  for (const Option& option : kOptions) CHECK(text.find("  " + option.name + " ") != std::string::npos);
  CHECK(text.find("models to run: any of sd15, sdxl (default: sd15,sdxl)") != std::string::npos);
}

TEST(split_keeps_empty_items_in_the_middle) {
  CHECK(split("a,,b", ',') == (Words{"a", "", "b"}));
  CHECK(split("", ',').empty());
}
