// SPDX-License-Identifier: Apache-2.0
/* eatmem MIB: touch so much memory, every page with another content, say so, and hold it until input ends. */
#include "common.h"

int main(int count, char **words)
{
	size_t size = count == 2 ? strtoull(words[1], NULL, 0) << 20 : 0;
	uint64_t state = 1, *memory;

	if (!size) {
		fputs("usage: eatmem MIB\n", stderr);
		return 2;
	}
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("eatmem: %s MiB", words[1]);
	for (size_t at = 0; at < size / 8; at += 512)
		memory[at] = next(&state);
	printf("eatmem: holds %s MiB\n", words[1]);
	fflush(stdout);
	while (read(0, &state, 8) > 0)
		;
	return 0;
}
