// SPDX-License-Identifier: Apache-2.0
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t utf16_length(PCWSTR text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static char *put_utf8(char *to, uint32_t c)
{
	if (c < 0x80) {
		*to++ = (char)c;
	} else if (c < 0x800) {
		*to++ = (char)(0xc0 | c >> 6);
		*to++ = (char)(0x80 | (c & 0x3f));
	} else if (c < 0x10000) {
		*to++ = (char)(0xe0 | c >> 12);
		*to++ = (char)(0x80 | (c >> 6 & 0x3f));
		*to++ = (char)(0x80 | (c & 0x3f));
	} else {
		*to++ = (char)(0xf0 | c >> 18);
		*to++ = (char)(0x80 | (c >> 12 & 0x3f));
		*to++ = (char)(0x80 | (c >> 6 & 0x3f));
		*to++ = (char)(0x80 | (c & 0x3f));
	}
	return to;
}

char *utf8_from_utf16(PCWSTR text)
{
	size_t i, n = utf16_length(text);
	char *result = malloc(3 * n + 1), *to = result;

	if (!result)
		return NULL;
	for (i = 0; i < n; i++) {
		uint32_t c = text[i];

		if (c >= 0xd800 && c < 0xe000) {
			/* text[n] is zero, so a lone surrogate at the end is refused, too */
			if (c >= 0xdc00 || text[i + 1] < 0xdc00 || text[i + 1] >= 0xe000) {
				free(result);
				return NULL;
			}
			c = 0x10000 + ((c - 0xd800) << 10) + (text[++i] - 0xdc00u);
		}
		to = put_utf8(to, c);
	}
	*to = 0;
	return result;
}

/* Read one character; 0 = not well-formed. */
static size_t take_utf8(const unsigned char *p, size_t left, uint32_t *c)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2, i;

	if (p[0] >= 0xf8 || (p[0] >= 0x80 && p[0] < 0xc0) || n > left)
		return 0;
	*c = n == 1 ? p[0] : p[0] & (0x7f >> n);
	for (i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		*c = *c << 6 | (p[i] & 0x3f);
	}
	if (*c < least[n] || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000))
		return 0;
	return n;
}

WCHAR *utf16_from_utf8(const char *text, size_t size, void *(*alloc)(size_t))
{
	const unsigned char *p = (const unsigned char *)text;
	WCHAR *result = malloc((size + 1) * sizeof(WCHAR)), *to = result, *copy = NULL;
	size_t n, i;

	for (i = 0; result && i < size; i += n) {
		uint32_t c = 0;

		n = take_utf8(p + i, size - i, &c);
		if (!n || !c) {
			free(result);
			return NULL;
		}
		if (c >= 0x10000) {
			*to++ = (WCHAR)(0xd800 + ((c - 0x10000) >> 10));
			*to++ = (WCHAR)(0xdc00 + (c & 0x3ff));
		} else {
			*to++ = (WCHAR)c;
		}
	}
	if (result) {
		*to++ = 0;
		n = (size_t)((char *)to - (char *)result);
		copy = alloc(n);
		if (copy)
			memcpy(copy, result, n);
		free(result);
	}
	return copy;
}

void guid_text(const GUID *g, char text[GUID_TEXT])
{
	snprintf(text, GUID_TEXT, "%08X-%04X-%04X-%02X%02X-%02X%02X%02X%02X%02X%02X", (unsigned int)g->Data1, g->Data2,
		 g->Data3, g->Data4[0], g->Data4[1], g->Data4[2], g->Data4[3], g->Data4[4], g->Data4[5], g->Data4[6],
		 g->Data4[7]);
}

int guid_is_zero(const GUID *guid)
{
	static const GUID zero;

	return memcmp(guid, &zero, sizeof(zero)) == 0;
}

int guid_take(struct slice text, char out[GUID_TEXT])
{
	size_t i;

	if (text.size != 38 || text.at[0] != '"')
		return -1;
	for (i = 0; i < 36; i++) {
		char c = text.at[i + 1];
		int dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? c != '-' : !strchr("0123456789abcdefABCDEF", c) || !c)
			return -1;
		out[i] = c;
	}
	out[36] = 0;
	return 0;
}

static size_t blank(struct slice s, size_t i)
{
	while (i < s.size && (s.at[i] == ' ' || s.at[i] == '\t' || s.at[i] == '\r' || s.at[i] == '\n'))
		i++;
	return i;
}

/* Index behind a text that begins at i; 0 = it does not end. */
static size_t behind_text(struct slice s, size_t i)
{
	for (i++; i < s.size; i++) {
		if (s.at[i] == '\\')
			i++;
		else if (s.at[i] == '"')
			return i + 1;
	}
	return 0;
}

/* Index behind a value that begins at i; 0 = it does not end. */
static size_t behind_value(struct slice s, size_t i)
{
	size_t depth = 0;

	while (i < s.size) {
		char c = s.at[i];

		if (!depth && (c == ',' || c == '}' || c == ']'))
			return i;
		if (c == '"') {
			i = behind_text(s, i);
			if (!i)
				return 0;
			continue;
		}
		if (c == '{' || c == '[')
			depth++;
		if (c == '}' || c == ']')
			depth--;
		i++;
	}
	return 0;
}

int json_member(struct slice object, const char *name, struct slice *value)
{
	size_t i = blank(object, 0), length = strlen(name);

	if (i >= object.size || object.at[i] != '{')
		return -1;
	for (;;) {
		size_t key, end;

		i = blank(object, i + 1);
		if (i >= object.size || object.at[i] != '"')
			return -1;
		key = i + 1;
		i = behind_text(object, i);
		if (!i)
			return -1;
		end = i - 1;
		i = blank(object, i);
		if (i >= object.size || object.at[i] != ':')
			return -1;
		value->at = object.at + blank(object, i + 1);
		i = behind_value(object, blank(object, i + 1));
		if (!i)
			return -1;
		value->size = (size_t)(object.at + i - value->at);
		while (value->size && strchr(" \t\r\n", value->at[value->size - 1]))
			value->size--;
		if (end - key == length && memcmp(object.at + key, name, length) == 0)
			return 0;
		if (object.at[i] != ',')
			return -1;
	}
}

int json_u32(struct slice value, uint32_t *number)
{
	uint64_t n = 0;
	size_t i;

	for (i = 0; i < value.size; i++) {
		if (value.at[i] < '0' || value.at[i] > '9' || n > UINT32_MAX)
			return -1;
		n = 10 * n + (uint64_t)(value.at[i] - '0');
	}
	if (!value.size || n > UINT32_MAX)
		return -1;
	*number = (uint32_t)n;
	return 0;
}
