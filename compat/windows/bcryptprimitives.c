// SPDX-License-Identifier: Apache-2.0
/*
 * bcryptprimitives.c - the one export that programs made with Go 1.22 or later cannot start without. Wine has the library
 * from version 9 on; Debian 12 has version 8.
 */
#include <windows.h>

/* RtlGenRandom, by the name that advapi32 exports it under. */
BOOLEAN WINAPI SystemFunction036(void *to, ULONG bytes);

#define PART (1u << 20)

__declspec(dllexport) BOOL WINAPI ProcessPrng(BYTE *to, SIZE_T bytes)
{
	while (bytes) {
		ULONG part = bytes < PART ? (ULONG)bytes : PART;

		if (!SystemFunction036(to, part))
			return FALSE;
		to += part;
		bytes -= part;
	}
	return TRUE;
}
